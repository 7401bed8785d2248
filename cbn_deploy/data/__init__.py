"""Long-tailed images: sources, views, batches, and a doctor for a user's own folders."""

from cbn_deploy.data.batches import TrainingBatch, TrainingLoader
from cbn_deploy.data.cifar import load_cifar_lt
from cbn_deploy.data.config import DataConfig, ViewConfig
from cbn_deploy.data.data_report import DataReport
from cbn_deploy.data.device_loader import DeviceLoader
from cbn_deploy.data.digits import load_digits_lt
from cbn_deploy.data.doctor import check_data
from cbn_deploy.data.evaluation_loader import evaluation_batches
from cbn_deploy.data.image_set import ArrayImageSet, FileImageSet, ImageSet, LongTailedData
from cbn_deploy.data.list_report import ListReport
from cbn_deploy.data.load import load_data
from cbn_deploy.data.loader import training_loader
from cbn_deploy.data.long_tail import long_tail_counts, long_tail_subset
from cbn_deploy.data.published_lists import load_published
from cbn_deploy.data.published_sets import PUBLISHED_SETS
from cbn_deploy.data.user_images import load_image_folder, load_test_images

__all__ = [
    "PUBLISHED_SETS",
    "ArrayImageSet",
    "DataConfig",
    "DataReport",
    "DeviceLoader",
    "FileImageSet",
    "ImageSet",
    "ListReport",
    "LongTailedData",
    "TrainingBatch",
    "TrainingLoader",
    "ViewConfig",
    "check_data",
    "evaluation_batches",
    "load_cifar_lt",
    "load_data",
    "load_digits_lt",
    "load_image_folder",
    "load_published",
    "load_test_images",
    "long_tail_counts",
    "long_tail_subset",
    "training_loader",
]
